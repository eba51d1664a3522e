{{ pending_model('polar', 'activity') }}
