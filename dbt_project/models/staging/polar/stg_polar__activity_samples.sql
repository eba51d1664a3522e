{{ pending_model('polar', 'activity_samples') }}
