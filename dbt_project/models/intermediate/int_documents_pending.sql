{{ documents_pending() }}
