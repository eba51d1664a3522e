{{ pending_model('librelinkup', 'graph') }}
