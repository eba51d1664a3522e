{{ pending_model('apple_health', 'records') }}
