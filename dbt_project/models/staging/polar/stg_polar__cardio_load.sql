{{ pending_model('polar', 'cardio_load') }}
