{{ pending_model('health_auto_export', 'sleep_sessions') }}
