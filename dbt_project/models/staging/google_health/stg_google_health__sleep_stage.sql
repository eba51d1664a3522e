{{ pending_model('google_health', 'sleep_stage') }}
