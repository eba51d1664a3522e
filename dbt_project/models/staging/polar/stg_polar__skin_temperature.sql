{{ pending_model('polar', 'skin_temperature') }}
