{{ pending_model('google_health', 'steps') }}
