{{ pending_model('oura', 'daily_readiness') }}
