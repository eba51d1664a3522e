{{ pending_model('google_health', 'active_minutes') }}
