{{ pending_model('fitbit', 'daily_value') }}
