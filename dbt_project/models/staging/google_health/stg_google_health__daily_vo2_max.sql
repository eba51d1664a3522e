{{ pending_model('google_health', 'daily_vo2_max') }}
