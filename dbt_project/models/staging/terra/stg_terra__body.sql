{{ pending_model('terra', 'body') }}
