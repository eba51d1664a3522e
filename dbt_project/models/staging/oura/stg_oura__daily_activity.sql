{{ pending_model('oura', 'daily_activity') }}
