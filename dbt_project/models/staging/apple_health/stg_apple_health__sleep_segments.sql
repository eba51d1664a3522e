{{ pending_model('apple_health', 'sleep_segments') }}
