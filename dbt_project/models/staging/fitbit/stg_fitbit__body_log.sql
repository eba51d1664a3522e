{{ pending_model('fitbit', 'body_log') }}
