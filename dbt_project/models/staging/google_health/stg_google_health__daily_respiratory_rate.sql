{{ pending_model('google_health', 'daily_respiratory_rate') }}
