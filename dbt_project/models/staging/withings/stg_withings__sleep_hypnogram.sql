{{ pending_model('withings', 'sleep_hypnogram') }}
