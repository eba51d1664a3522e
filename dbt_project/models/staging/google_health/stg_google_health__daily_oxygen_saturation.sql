{{ pending_model('google_health', 'daily_oxygen_saturation') }}
