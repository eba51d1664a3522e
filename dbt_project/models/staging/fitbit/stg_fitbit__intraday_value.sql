{{ pending_model('fitbit', 'intraday_value') }}
