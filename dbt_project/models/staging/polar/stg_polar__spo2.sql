{{ pending_model('polar', 'spo2') }}
