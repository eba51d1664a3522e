{{ pending_model('oura', 'daily_sleep') }}
