{{ pending_model('terra', 'sample') }}
