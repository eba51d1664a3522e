{{ pending_model('withings', 'activity') }}
