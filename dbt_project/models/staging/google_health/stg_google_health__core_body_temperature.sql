{{ pending_model('google_health', 'core_body_temperature') }}
