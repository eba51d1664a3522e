{{ pending_model('google_health', 'oxygen_saturation') }}
