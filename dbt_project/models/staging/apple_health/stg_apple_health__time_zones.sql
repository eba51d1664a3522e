{{ pending_model('apple_health', 'time_zones') }}
