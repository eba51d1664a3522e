{{ pending_model('terra', 'daily') }}
