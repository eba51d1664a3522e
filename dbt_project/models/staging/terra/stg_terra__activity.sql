{{ pending_model('terra', 'activity') }}
