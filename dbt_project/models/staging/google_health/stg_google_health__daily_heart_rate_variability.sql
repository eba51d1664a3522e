{{ pending_model('google_health', 'daily_heart_rate_variability') }}
