{{ pending_model('google_health', 'active_zone_minutes') }}
