{{ pending_model('withings', 'intraday_activity') }}
