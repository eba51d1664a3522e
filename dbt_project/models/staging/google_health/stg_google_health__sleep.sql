{{ pending_model('google_health', 'sleep') }}
