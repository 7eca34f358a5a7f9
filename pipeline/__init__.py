"""What Gristmill computes: config, receipts and the five stages, free of any scheduler."""
