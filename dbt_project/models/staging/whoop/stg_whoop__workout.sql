{{ pending_model('whoop', 'workout') }}
