{{ pending_model('polar', 'physical_info') }}
