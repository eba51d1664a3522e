{{ pending_model('whoop', 'body_measurement') }}
