{{ pending_model('google_health', 'heart_rate_variability') }}
