{{ pending_model('polar', 'exercise') }}
