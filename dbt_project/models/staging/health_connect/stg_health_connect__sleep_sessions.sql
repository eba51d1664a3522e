{{ pending_model('health_connect', 'sleep_sessions') }}
