{{ pending_model('google_health', 'daily_resting_heart_rate') }}
