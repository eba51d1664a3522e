{{ pending_model('polar', 'body_temperature') }}
