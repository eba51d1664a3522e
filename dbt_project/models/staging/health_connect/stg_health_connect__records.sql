{{ pending_model('health_connect', 'records') }}
