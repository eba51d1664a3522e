{{ pending_model('google_health', 'height') }}
