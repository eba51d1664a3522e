{{ pending_model('terra', 'sleep') }}
