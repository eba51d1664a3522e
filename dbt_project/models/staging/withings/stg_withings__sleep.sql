{{ pending_model('withings', 'sleep') }}
