{{ pending_model('oura', 'daily_cardiovascular_age') }}
