{{ pending_model('oura', 'daily_resilience') }}
