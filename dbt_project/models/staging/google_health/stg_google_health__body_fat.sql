{{ pending_model('google_health', 'body_fat') }}
