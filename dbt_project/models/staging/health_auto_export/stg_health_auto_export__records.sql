{{ pending_model('health_auto_export', 'records') }}
