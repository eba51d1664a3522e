{{ pending_model('withings', 'sleep_sample') }}
