{{ pending_model('librelinkup', 'logbook') }}
