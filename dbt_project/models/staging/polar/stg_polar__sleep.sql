{{ pending_model('polar', 'sleep') }}
